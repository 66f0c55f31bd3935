"""The data path: HTTP/1.1 framing, forwarding and relaying."""
