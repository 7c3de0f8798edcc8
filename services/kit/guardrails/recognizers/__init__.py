"""What is redacted, one kind to a file; by the number of the contract's enum."""

from collections.abc import Mapping

from infermesh.auth.v1 import key_service_pb2 as pb
from services.kit.guardrails.recognizers.addresses import IpAddresses
from services.kit.guardrails.recognizers.cards import CreditCards
from services.kit.guardrails.recognizers.emails import EmailAddresses
from services.kit.guardrails.recognizers.ibans import Ibans
from services.kit.guardrails.recognizers.phones import PhoneNumbers
from services.kit.guardrails.recognizers.recognizer import Recognizer
from services.kit.guardrails.recognizers.secrets import Secrets

# The surest first: what one has replaced, the next does not see.
RECOGNIZERS: Mapping[int, Recognizer] = {
    pb.REDACTION_SECRETS: Secrets(),
    pb.REDACTION_EMAIL_ADDRESSES: EmailAddresses(),
    pb.REDACTION_IBANS: Ibans(),
    pb.REDACTION_CREDIT_CARDS: CreditCards(),
    pb.REDACTION_IP_ADDRESSES: IpAddresses(),
    pb.REDACTION_PHONE_NUMBERS: PhoneNumbers(),
}
