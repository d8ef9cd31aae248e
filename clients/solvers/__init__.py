"""What methods of adaptation solve with: conjugate gradients, and flows with a watch over their steps."""
