"""
How fast and how small: one script for each question, every peer in a process of its own.

    python -m benchmarks                        # questions 1 to 5, under 20 minutes on 2 cores
    python -m benchmarks.stitching --rounds 5   # one of them
    python -m benchmarks.gpu                    # question 6, on a machine with a CUDA device
    python -m benchmarks.out_of_core            # question 7, some 15 minutes on a disk with 30 GB free
    python -m benchmarks.pipeline               # question 8, a whole bundle; needs 20 GiB of memory for MONAI
    python -m benchmarks.reading                # how often a compressed input is read (part of question 7)
    python -m benchmarks.planned_memory         # the memory that a run takes beside what its plan says
    python -m benchmarks.small_windows          # what a window of 8³ voxels costs

`harness` runs peers, `peers` is what runs, `report` writes `results/<question>.md`, `.json` and `.png`.
"""
