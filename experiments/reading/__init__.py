"""What a person reads after the runs: tables of outcomes, how sure they are, and the reports that hold them."""
