"""What a real federation does to answers: attackers, thin wires, noise; pure functions of rows, and their tables."""
