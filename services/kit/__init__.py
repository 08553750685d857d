"""What every process needs: errors, rpc, ttrpc, settings, tracing, process, filters, faults, and no more.

Nothing outside this package imports grpc or opentelemetry; a test checks this.
"""
