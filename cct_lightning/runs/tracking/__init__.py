"""The run at Weights & Biases. Only ``runs`` comes in here, and nobody else imports wandb."""
