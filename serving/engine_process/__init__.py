"""An engine in a process of its own, so that it shares neither the interpreter's lock nor its fate with the server.

``host`` is the server's side, ``worker`` the engine's, ``messages`` what they say to each other: msgpack over a socket
pair that both inherit, which nobody else can reach.
"""
