"""Are the files of a bundle what its manifest says, and do they compute what PyTorch computed?"""
