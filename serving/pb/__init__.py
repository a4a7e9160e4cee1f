"""Messages and stubs generated from ``proto/`` by ``make protos``; never edited by hand."""
