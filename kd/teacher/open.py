"""Opener of the teacher source that a configuration asks for."""

from __future__ import annotations

from kd.config.defaults import teacher_source
from kd.config.registries import TEACHER_SOURCES
from kd.teacher.source import OpenTeacher, TeacherSource


def open_teacher(request: OpenTeacher) -> TeacherSource:
    """Open the source that teacher.source names; by default the cache where there is one, else the live teacher.

    All ranks call it together.

    Raises:
        NotCaptured: teacher.cache names a folder without a finished cache.
        CacheError: the cache is damaged, or another teacher's, tokenizer's, template's or dataset's.
        StudentError: the teacher's files cannot be read.
    """
    return TEACHER_SOURCES[teacher_source(request.teacher)](request)
