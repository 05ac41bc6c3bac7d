"""What callers on the host itself may ask of its agent, over a Unix socket.

`service` does it, `mdevctl` answers mdevctl's callout, `api` is both as HTTP and JSON (`shapes`,
`openapi`), `serving` is the socket.
"""
