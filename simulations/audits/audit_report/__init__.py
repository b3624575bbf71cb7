"""The report on an audit: a page for whoever answers for the data, a file for machines, a signature."""

from __future__ import annotations

from simulations.audits.audit_report.audit import ALARM_LEVEL, Audit, Bound, MembershipTest, Origin
from simulations.audits.audit_report.files import Place, open_place, place_needed, write_report
from simulations.audits.audit_report.machine import to_dict
from simulations.audits.audit_report.signature import Verified, verify_report
from simulations.audits.audit_report.words import alarm, broken

__all__ = [
    "ALARM_LEVEL",
    "Audit",
    "Bound",
    "MembershipTest",
    "Origin",
    "Place",
    "Verified",
    "alarm",
    "broken",
    "open_place",
    "place_needed",
    "to_dict",
    "verify_report",
    "write_report",
]
