"""Describe requests and answers for the OpenAPI page."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

DESCRIPTION = (
    "Judges images of a product by a checkpoint of mvtec_lab, as `task=predict` does. Send an image as the body of a "
    "POST, or several as files of a form."
)


class Box(BaseModel):
    """A defect that was found."""

    label: str
    score: float
    box: list[float] = Field(description="x0, y0, x1, y1 in pixels of the image")


class Result(BaseModel):
    """Hold what the model says of an image: the columns of predictions.csv. What a model does not say is left out."""

    name: str = Field(description="of the file; image, where it has none")
    decision: str | None = Field(None, description="OK, REVIEW, REJECT or UNKNOWN: what the line does with the part")
    prediction: str = Field(description="good or defect; of a classifier the class")
    found_type: str | None = Field(None, description="the defect's type, of a segmentation model")
    score: float | None = Field(None, description="how little the image is like a good one")
    threshold: float | None = Field(None, description="a score above it is rejected")
    accept: float | None = Field(None, description="a score above it, up to the threshold, is reviewed")
    confidence: float | None = Field(None, description="the probability of the prediction")
    probabilities: dict[str, float] | None = Field(None, description="of each class")
    set: str | None = Field(None, description="the classes that the image may show, between |")
    certainty: str | None = Field(None, description="sure or unsure")
    distance: float | None = Field(None, description="to the nearest training image, in features")
    unknown_above: float | None = Field(None, description="a larger distance is UNKNOWN")
    mask_share: float | None = Field(None, description="of the image that the mask covers")
    boxes: list[Box] | None = Field(None, description="of a detector")
    width: int = Field(description="of the image, pixels, upright")
    height: int
    mask: str | None = Field(None, description="with map=true: a PNG in base64, 255 where the defect is, else 0")
    overlay: str | None = Field(None, description="with map=true: a JPEG in base64 that shows where the defect is")


class Failure(BaseModel):
    """Why there is no answer, in one line."""

    error: str


class PartFailure(Failure):
    """Why one file of a form has no answer."""

    name: str
    status: int = Field(description="of HTTP, that it would have alone")


class Results(BaseModel):
    """An answer for each file of a form, in their order."""

    results: list[Result | PartFailure]


class About(BaseModel):
    """Which model answers."""

    checkpoint: str
    sha256: str = Field(description="of the checkpoint's file")
    attempt: str | None = Field(None, description="that trained it; null: no result.json beside it says so")
    method: str
    classes: list[str]
    image_size: int = Field(description="pixels a side of the square that images are brought into")
    fit: str
    tile: int | None = Field(None, description="pixels a side of the tiles that it sees of an image")
    threshold: float | None = None
    accept: float | None = None
    version: str = Field(description="of mvtec_lab")


_BINARY = {"type": "string", "format": "binary"}
_FAILURES = {
    400: "The request is no image and no form with files",
    408: "It did not arrive in time",
    413: "It is too large: bytes, pixels, or files",
    415: "It is no kind of image that is read",
    422: "The image is damaged",
    503: "Too many images wait: Retry-After says for how many seconds",
}
PREDICT: dict[str, Any] = {
    "responses": {
        200: {"model": Result | Results, "description": "A result; of a form a list of results"},
        **{status: {"model": Failure, "description": text} for status, text in _FAILURES.items()},
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": "map",
                "in": "query",
                "description": "with mask and overlay, where the model says where a defect is",
                "schema": {"type": "boolean", "default": False},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": _BINARY},
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"image": {"type": "array", "items": _BINARY}}}
                },
            },
        },
    },
}
