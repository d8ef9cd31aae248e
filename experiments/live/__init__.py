"""Live loggers: every row of a run goes to TensorBoard, Weights & Biases or MLflow when it is made. One file each."""
