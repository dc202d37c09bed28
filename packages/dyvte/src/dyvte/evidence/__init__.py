"""What this package can show for the paper's claims."""
