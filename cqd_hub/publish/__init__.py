"""What of a run goes to the Hub. No torch unless weights are built."""
