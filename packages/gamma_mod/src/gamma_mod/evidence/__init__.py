"""What supports the ledger's claims."""
