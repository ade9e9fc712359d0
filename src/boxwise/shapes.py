"""Letters used in every shape annotation, and the units behind them.

B  images in the batch        R  matched regions per image    N  listed objects per image
H W  pixels of a view         h w  cells of a feature map     C  feature channels
D  embedding width            M  rows in a loss (B*R, or B)    K  keys held by a queue
P  tiles cut from an image    T  tries of a vectorised draw

Boxes are xyxy with exclusive right and bottom edges. "View pixels" are pixels of an augmented
view after its flip; "source pixels" are pixels of the decoded image the view was cut from.
"""

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Boxes = Float[Tensor, "B R 4"]
Embeddings = Float[Tensor, "M D"]
Image = Float[Tensor, "B 3 H W"]
Picture = UInt8[Tensor, "3 H W"]  # one decoded image, RGB
Keep = Bool[Tensor, " M"]
RowWeight = Float[Tensor, " M"]
Rows = Float[Tensor, "M 5"]  # image index, then a box: what RoIAlign takes
Index = Int[Tensor, " B"]
Scalar = Float[Tensor, ""]
