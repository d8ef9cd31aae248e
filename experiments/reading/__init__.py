"""What a person reads after the runs: reports, as text and in the formats of papers."""
