"""For mkdocs.yml: configurations show their fields as a signature, as data classes do."""

from typing import Any

from griffe import Attribute, Class, Extension, Function, Module, Parameter, ParameterKind, Parameters

_MODELS = {"Config", "BaseModel"}


class FieldSignatures(Extension):
    """Give each pydantic model the `__init__` that pydantic makes of its annotated fields."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Visit every class, once the whole package is read and bases are found."""
        self._visit(pkg)

    def _visit(self, scope: Module | Class) -> None:
        for member in list(scope.members.values()):
            if member.is_alias:
                continue
            if isinstance(member, Class) and _is_model(member):
                _add_signature(member)
            if isinstance(member, Module | Class):
                self._visit(member)


def _is_model(class_: Class) -> bool:
    names = {str(base).rpartition(".")[2] for base in class_.bases} | {base.name for base in class_.mro()}
    return class_.name not in _MODELS and not names.isdisjoint(_MODELS) and "__init__" not in class_.members


def _add_signature(class_: Class) -> None:
    fields: dict[str, Attribute] = {}
    for owner in (*reversed(class_.mro()), class_):
        fields |= {name: member for name, member in owner.members.items() if _is_field(member)}
    parameters = [
        Parameter(
            name,
            annotation=field.annotation,
            kind=ParameterKind.keyword_only,
            default=field.value if field.value is None or not str(field.value).startswith("Field(") else "...",
        )
        for name, field in fields.items()
    ]
    init = Function("__init__", parameters=Parameters(*parameters), parent=class_)
    class_.set_member("__init__", init)


def _is_field(member: Any) -> bool:
    if not isinstance(member, Attribute) or "property" in member.labels:
        return False
    return member.annotation is not None and not member.name.startswith("_")
