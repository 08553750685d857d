"""What every process needs and no more: errors, rpc, ttrpc, settings, tracing, process, filters, faults.

Nothing outside this package imports grpc or opentelemetry; a test says so.
"""
