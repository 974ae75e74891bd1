"""What is watched while a run trains, and before."""
