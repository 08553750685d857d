"""The traces service: an embedded collector of OpenTelemetry's spans with a bounded store, and what is made of them:
critical paths, verdicts, comparisons and a page.
"""
