"""Protocol buffer messages as the JSON that `dep2pctl -o json` prints (docs/cli.md).

Names are the protos'. Every field is there: an optional one that is absent, a timestamp that was
never set and an enum's UNSPECIFIED are null. 64-bit integers are numbers, enums are lower-case
without their prefix ("direct"), times are RFC 3339. Of a oneof only the member that is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from google._upb._message import EnumDescriptor as UpbEnumDescriptor
    from google._upb._message import FieldDescriptor as UpbFieldDescriptor
    from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
    from google.protobuf.message import Message

Field: TypeAlias = "FieldDescriptor | UpbFieldDescriptor"

Enum: TypeAlias = "EnumDescriptor | UpbEnumDescriptor"

SCHEMA_VERSION: Final = 1
"""Grows when a field changes its meaning or goes away; new fields do not change it."""


def as_json(message: Message) -> dict[str, Any]:
    """The fields of a message."""
    return {
        field.name: _field(message, field)
        for field in message.DESCRIPTOR.fields
        if not _is_oneof_member(field) or message.HasField(field.name)
    }


def enum_name(kind: Enum, number: int) -> str | None:
    """`PATH_DIRECT` as "direct"; None for UNSPECIFIED and for what a newer daemon may send."""
    value = kind.values_by_number.get(number)
    if value is None or number == 0:
        return None
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name).removeprefix(prefix).lower()


def _is_oneof_member(field: Field) -> bool:
    oneof = field.containing_oneof
    # "optional" is a oneof of one field, made up by protoc.
    return oneof is not None and len(oneof.fields) > 1


def _field(message: Message, field: Field) -> Any:  # noqa: ANN401 - any JSON
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))  # of scalars, all that there are
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Field, value: Any) -> Any:  # noqa: ANN401 - any JSON
    if field.message_type is not None:
        return value.ToJsonString() if isinstance(value, Timestamp) else as_json(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    return value
