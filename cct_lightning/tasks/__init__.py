"""What is learned: LightningModules over the same networks. ``runs`` and Python come in here."""
