"""Documents: the JSON Schemas and the AsyncAPI document as files, which `docs/schemas` has a copy of."""

import json
from pathlib import Path

from protocol.asyncapi import asyncapi
from protocol.schema import CLOSED, DIALECT, ID_PREFIX, MODELS, Document, error_codes, model_schemas, needed_of


def documents() -> dict[str, Document]:
    """Every document by its file name: `<message>.schema.json`, and `asyncapi.json`."""
    schemas = model_schemas("#/$defs/{model}")
    made: dict[str, Document] = {}
    for file, model in MODELS.items():
        schema = schemas[model.__name__]
        document = {"$schema": DIALECT, "$id": f"{ID_PREFIX}{file}", **schema}
        if needed := needed_of(schema, schemas):
            document["$defs"] = needed
        if file == CLOSED:
            document["additionalProperties"] = False
            document["$defs"] = {
                name: {**definition, "additionalProperties": False} for name, definition in needed.items()
            }
        made[f"{file}.schema.json"] = document
    made["error-code.schema.json"] = {"$schema": DIALECT, "$id": f"{ID_PREFIX}error-code", **error_codes()}
    made["asyncapi.json"] = asyncapi()
    return made


def text_of(document: Document) -> str:
    """A document as the text of its file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write(folder: Path) -> list[Path]:
    """Write every document into a folder, which is made where it is not there; returns the files' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, document in documents().items():
        path = folder / name
        path.write_text(text_of(document), encoding="utf-8")
        paths.append(path)
    return paths
