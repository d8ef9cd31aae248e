"""Ray itself: started or joined, how much room it has, and that nothing of a private one stays."""
