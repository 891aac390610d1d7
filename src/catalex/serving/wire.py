"""What requests and answers look like. Unknown fields, wrong types, NaN and endless texts are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from catalex.serving.items import LONGEST_KEY, Item, NewItem, Selection

LONGEST_TEXT = 20_000
"""Characters of a text; encoders read the first few thousand at most."""
LONGEST_NAME = 100
MOST_CATEGORIES = 20
MOST_ATTRIBUTES = 50


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("nul", "the text holds a NUL character, which databases do not keep")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "the text is blank")
    return text


Clean = AfterValidator(_no_nul)
Key = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_KEY), Clean]
Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME), Clean]
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=LONGEST_TEXT), Clean, AfterValidator(_not_blank)
]
Title = Annotated[str, StringConstraints(min_length=1, max_length=500), Clean, AfterValidator(_not_blank)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Attributes = Annotated[dict[Name, Number], Field(max_length=MOST_ATTRIBUTES)]
Categories = Annotated[list[Name], Field(max_length=MOST_CATEGORIES)]
Count = Annotated[int, Field(ge=1, le=1000)]


class Asked(BaseModel):
    """Base of what comes in."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Told(BaseModel):
    """Base of what goes out."""

    model_config = ConfigDict(from_attributes=True)


# --- in -----------------------------------------------------------------------------------------------------


class Range(Asked):
    """Bounds of an attribute, both included."""

    min: Number | None = None
    max: Number | None = None


class Filter(Asked):
    """Which items may come out; all conditions hold together."""

    categories: Categories = Field(default=[], description="Items in at least one of these.")
    in_stock: bool = Field(default=False, description="Only items in stock.")
    ranges: Annotated[dict[Name, Range], Field(max_length=10)] = Field(
        default={}, description="Bounds of attributes by name; items that lack one are out."
    )

    def selection(self) -> Selection:
        """For the catalogue."""
        ranges = tuple((name, r.min, r.max) for name, r in sorted(self.ranges.items()))
        return Selection(tuple(self.categories), self.in_stock, ranges)


class Unseen(Asked):
    """An item of a history that is not in the catalogue, by its text."""

    text: Text


class RecommendRequest(Asked):
    """A history, oldest item first, and what may be recommended after it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["22423", "85123A"], "k": 5},
                {"history": ["22423", {"text": "blue ceramic cake stand"}], "filter": {"in_stock": True}},
            ]
        }
    )
    history: Annotated[list[Key | Unseen], Field(min_length=1)] = Field(
        description="Item ids, or texts of items that the catalogue does not have, oldest first."
    )
    k: Count = Field(default=10, description="Items wanted.")
    exclude: Annotated[list[Key], Field(max_length=1000)] = Field(
        default=[], description="Item ids that may not come out; unknown ones are ignored."
    )
    filter: Filter = Filter()
    explain: bool = Field(default=False, description="Also tell the probability of each code.")


class BatchRequest(Asked):
    """Several histories at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"requests": [{"history": ["22423"]}, {"history": ["85123A"], "k": 3}]}]
        }
    )
    requests: Annotated[list[RecommendRequest], Field(min_length=1)]


class SimilarRequest(Asked):
    """An item, or a text, whose nearest items are wanted."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"item": "22423", "k": 5}, {"text": "cake stand"}]}
    )
    item: Key | None = None
    text: Text | None = None
    k: Count = 10
    filter: Filter = Filter()

    @model_validator(mode="after")
    def _one(self) -> SimilarRequest:
        if (self.item is None) == (self.text is None):
            raise PydanticCustomError("one_of", "give either 'item' or 'text'")
        return self


class TokenizeRequest(Asked):
    """Content, whose identifier is wanted. Nothing is stored."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "RED RETROSPOT CAKE STAND", "k": 5}]})
    text: Text | None = None
    image: str | None = Field(default=None, description="JPEG, PNG, WebP or GIF as base64.")
    k: Count = Field(default=10, description="Nearest items wanted.")

    @model_validator(mode="after")
    def _content(self) -> TokenizeRequest:
        if not (self.text or self.image):
            raise PydanticCustomError("no_content", "give 'text', 'image' or both")
        return self


class ItemIn(Asked):
    """An item to add. Its text is put together from these fields as the bundle's recipe says."""

    key: Key
    title: Title | None = None
    brand: Name | None = None
    category: Name | None = Field(default=None, description="Short for one entry of `categories`.")
    categories: Categories = []
    description: Text | None = None
    keywords: Text | None = None
    text: Text | None = Field(default=None, description="The whole text, in place of the fields above.")
    image: str | None = Field(default=None, description="JPEG, PNG, WebP or GIF as base64.")
    in_stock: bool = True
    attributes: Attributes = {}

    @model_validator(mode="after")
    def _content(self) -> ItemIn:
        if not (self.title or self.description or self.keywords or self.text or self.image):
            raise PydanticCustomError("no_content", "the item has neither text nor image")
        return self

    def new(self, image: bytes | None) -> NewItem:
        """For the catalogue."""
        categories = [*self.categories, *([self.category] if self.category else [])]
        return NewItem(
            self.key,
            title=self.title,
            brand=self.brand,
            categories=tuple(categories),
            description=self.description,
            keywords=self.keywords,
            text=self.text,
            image=image,
            in_stock=self.in_stock,
            attributes=dict(self.attributes),
        )


class AddRequest(Asked):
    """Items to add, all or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"key": "NEW-1", "title": "RED RETROSPOT CAKE STAND", "attributes": {"price": 9.95}}
                    ]
                }
            ]
        }
    )
    items: Annotated[list[ItemIn], Field(min_length=1)]


class UpdateRequest(Asked):
    """What is to change of an item; fields that are left out stay. The identifier always stays."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"in_stock": False, "attributes": {"price": 7.5}}]}
    )
    title: Title | None = None
    categories: Categories | None = None
    in_stock: bool | None = None
    attributes: Annotated[dict[Name, Number | None], Field(max_length=MOST_ATTRIBUTES)] | None = Field(
        default=None, description="Laid over those it has; null takes one away."
    )


class ModelName(Asked):
    """A bundle, by the name of its folder in the folder of models."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "november"}]})
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


# --- out ----------------------------------------------------------------------------------------------------


class ItemOut(Told):
    """An item of the catalogue."""

    key: str
    title: str
    identifier: list[int]
    categories: list[str] = []
    in_stock: bool = True
    attributes: dict[str, float] = {}
    has_image: bool = False

    @classmethod
    def of(cls, item: Item, **more: Any) -> Any:
        """From the catalogue's item."""
        return cls(
            key=item.key,
            title=item.title,
            identifier=list(item.identifier),
            categories=list(item.categories),
            in_stock=item.in_stock,
            attributes=dict(item.attributes),
            has_image=item.has_image,
            **more,
        )


class WholeItem(ItemOut):
    """An item with the text that its identifier was made of."""

    text: str


class Items(Told):
    """Some items, and the state of the catalogue that they are from."""

    items: list[ItemOut]
    revision: int

    @classmethod
    def of(cls, items: Sequence[Item], revision: int) -> Items:
        """From the catalogue's items."""
        return cls(items=[ItemOut.of(item) for item in items], revision=revision)


class Step(Told):
    """One code of a recommended identifier: its probability after the codes before it."""

    code: int
    probability: float


class Recommended(ItemOut):
    """An item, its log-probability, and that as a probability.

    A newcomer stands in a place kept for items that came since the bundle was made: it was chosen by its
    content, and its score and probability are those of the item before it.
    """

    newcomer: bool = False
    score: float
    probability: float
    path: list[Step] | None = None


class Recommendations(Told):
    """The best next items, best first; fewer than k where the filter leaves fewer."""

    items: list[Recommended]
    model: str
    revision: int


class Batch(Told):
    """One answer for each request, in their order."""

    answers: list[Recommendations]


class Near(ItemOut):
    """An item and its cosine to what was asked for."""

    cosine: float


class Similar(Told):
    """The nearest items, nearest first."""

    items: list[Near]
    revision: int


class Level(Told):
    """One code of a path in the code tree.

    `used` are the codes in use beside it with their number of items; `neighbours` are items that share all
    codes before this one and part here, nearest first.
    """

    code: int
    size: int
    items: int
    used: list[tuple[int, int]]
    neighbours: list[ItemOut]


class Path(Told):
    """An item's identifier as a path from the root of the code tree."""

    item: WholeItem
    levels: list[Level]


class Tokenized(Told):
    """The identifier that an item would get now, its path, and the nearest items."""

    identifier: list[int]
    levels: list[Level]
    nearest: list[Near]
    revision: int


class Removed(Told):
    """Whether an item was there to be removed."""

    removed: bool
    revision: int


class Failure(Told):
    """What went wrong, in one sentence."""

    code: str
    message: str
    request_id: str


class Error(Told):
    """The body of every answer that is not a success."""

    error: Failure
