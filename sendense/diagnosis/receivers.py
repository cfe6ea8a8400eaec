"""Who gets notices, as this machine reaches them: each is asked whether it is there, and is sent nothing."""

from sendense.errors import InputError
from sendense.receivers import Notices, Receiver
from sendense.service import mail, webhook

RECEIVER_SECONDS = max(webhook.WEBHOOK_SECONDS, mail.MAIL_SECONDS + mail.CUT_SECONDS) + 5.0
"""For one of them: each ends its own attempt before."""

_SECRETS = {"webhook": webhook.secret, "mail": mail.password}
_REACHES = {"webhook": webhook.reach, "mail": mail.reach}


def look(notices: Notices, receiver: Receiver, *, offline: bool = False) -> str:
    """
    Where its notices go; InputError when they could not.

    A mail server has to let us in, of a web server any answer will do. Offline only the files are looked at.
    """
    _SECRETS[receiver](notices)
    webhook.trusting(notices)
    if not offline and (outcome := _REACHES[receiver](notices)).error:
        hint = "Correct [notices] in the settings file, or the receiver; try: sendense notices test"
        raise InputError(outcome.error, hint)
    return notices.show(receiver)
