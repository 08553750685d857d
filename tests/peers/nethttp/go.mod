module splitd/tests/peers/nethttp

go 1.24
