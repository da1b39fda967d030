"""What the API refuses: https://developers.weixin.qq.com/doc/service/guide/dev/api/errorcode.html"""

from __future__ import annotations

from adapters.wechat_api import Errors
from bot.errors import Refused, Throttled, Unauthorized, Unavailable

NOT_PERMITTED = 48001  # to send customer-service messages
ADDRESS = (40164, 61004, 89503)  # to call from here
ERRORS: Errors = {
    -1: (Unavailable, "the platform is busy"),
    40001: (Unauthorized, "the app secret or the access token is not valid"),
    40013: (Unauthorized, "the app id is not valid"),
    40014: (Unauthorized, "the access token is not valid"),
    40125: (Unauthorized, "the app secret is not valid"),
    40164: (Unauthorized, "our address is not on the account's IP white list"),
    42001: (Unauthorized, "the access token has expired"),
    43004: (Refused, "the person does not follow the account any more"),
    45002: (Refused, "the message is too long"),
    45009: (Throttled, "daily quota of the API"),
    45011: (Throttled, "rate limit of the API"),
    45015: (Refused, "the person has not written for 48 hours"),
    45047: (Refused, "the person has to write before more messages may be sent"),
    NOT_PERMITTED: (Unauthorized, "the account may not send customer-service messages"),
    50002: (Unauthorized, "the account is restricted"),
    61004: (Unauthorized, "our address is not on the account's IP white list"),
    89503: (Unauthorized, "an administrator has to confirm our address"),
}
