"""Write a product's defects in the formats of other programs, YOLO, COCO and masks by class index, and read them."""

from __future__ import annotations

from mvtec_lab.data.annotations.coco import read_coco, write_coco, write_coco_polygons
from mvtec_lab.data.annotations.export import write_masks
from mvtec_lab.data.annotations.yolo import read_yolo, write_yolo, write_yolo_seg

# The readers of annotated folders by data.name; they return a Scan, as samples.scan does.
READERS = {"coco": read_coco, "yolo": read_yolo}
# The writers of config.ANNOTATIONS: (folder, images, kinds) -> what to say of it, in a line.
WRITERS = {
    "yolo": write_yolo,
    "yolo_seg": write_yolo_seg,
    "coco": write_coco,
    "coco_polygons": write_coco_polygons,
    "masks": write_masks,
}
