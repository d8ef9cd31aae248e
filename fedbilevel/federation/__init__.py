"""The federation: who takes part, what travels, how answers become one, and what all of that costs."""
