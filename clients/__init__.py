"""What clients compute: operations on cohorts, the node that answers requests, and the Flower ClientApp."""
