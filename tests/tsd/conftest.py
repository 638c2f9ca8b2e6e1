import sys
from pathlib import Path

# What tests share, in a folder of its own: another `conftest` on the path would stand in the way of the sweeps' one.
sys.path.append(str(Path(__file__).parent / "samples"))
