"""The payment platform itself: eight services, what each of their operations does, and the requests that come in.

How it works. Every function below is an operation of one service, written as its developers would have written it, in
terms of `Operation` (work, log, query, call, publish). The decorators say how it is reached: HTTP, gRPC, a queue, a
schedule. `ENTRIES` maps each flow of `traffic.py` to the operation it enters by. Money shows on spans as
`payment.amount`, `payment.debit.amount` and `payment.credit.amount`; what was debited is what is credited.

    client > gateway > order > risk (redis)
                             > account (postgresql)
                             > clearing > card network
                             > [queue] > ledger (postgresql) > [queue] > notification > message provider
    scheduler > settlement > clearing, ledger > [queue] > notification
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from collector_processor.simulator.transaction import (
    CLIENT,
    CONSUMER,
    INFO,
    INTERNAL,
    PRODUCER,
    SERVER,
    Body,
    Endpoint,
    Operation,
    RequestError,
    Shape,
)
from collector_processor.simulator.wire import (
    LOG_ATTRIBUTE,
    SPAN_ATTRIBUTE,
    DoubleAttribute,
    Value,
    attribute,
    attributes,
    span_shape,
)

COPIES: Final[Mapping[str, int]] = {
    "gateway": 3,
    "order": 3,
    "risk": 2,
    "account": 3,
    "clearing": 2,
    "settlement": 2,
    "ledger": 2,
    "notification": 2,
}

AMOUNT = DoubleAttribute(SPAN_ATTRIBUTE, "payment.amount")
DEBITED = DoubleAttribute(SPAN_ATTRIBUTE, "payment.debit.amount")
CREDITED = DoubleAttribute(SPAN_ATTRIBUTE, "payment.credit.amount")


def _key(service: str, body: Body) -> str:
    return f"{service}.{body.__name__}"


def http(service: str, method: str, route: str) -> Callable[[Body], Endpoint]:
    """An operation behind an HTTP route. Client spans carry the method alone as their name, as HTTP clients do."""

    def wrap(body: Body) -> Endpoint:
        shared: dict[str, Value] = {"http.request.method": method, "server.address": service}
        server = span_shape(f"{method} {route}", SERVER, {**shared, "http.route": route, "url.scheme": "http"})
        client = span_shape(method, CLIENT, {**shared, "server.port": 8080})
        return Endpoint(_key(service, body), service, body, server, SERVER, client, CLIENT, grpc=False)

    return wrap


def rpc(service: str, interface: str, method: str) -> Callable[[Body], Endpoint]:
    """An operation behind a gRPC method."""

    def wrap(body: Body) -> Endpoint:
        name = f"pay.{interface}/{method}"
        shared: dict[str, Value] = {"rpc.system": "grpc", "rpc.service": f"pay.{interface}", "rpc.method": method}
        server = span_shape(name, SERVER, shared)
        client = span_shape(name, CLIENT, {**shared, "server.address": service, "server.port": 9090})
        return Endpoint(_key(service, body), service, body, server, SERVER, client, CLIENT, grpc=True)

    return wrap


def consumer(service: str, topic: str) -> Callable[[Body], Endpoint]:
    """An operation that reads a queue."""

    def wrap(body: Body) -> Endpoint:
        shared: dict[str, Value] = {"messaging.system": "kafka", "messaging.destination.name": topic}
        read = {**shared, "messaging.operation.type": "process", "messaging.consumer.group.name": service}
        process = span_shape(f"process {topic}", CONSUMER, read)
        send = span_shape(f"send {topic}", PRODUCER, {**shared, "messaging.operation.type": "send"})
        return Endpoint(_key(service, body), service, body, process, CONSUMER, send, PRODUCER, grpc=False)

    return wrap


def job(service: str, name: str) -> Callable[[Body], Endpoint]:
    """An operation that a schedule starts."""

    def wrap(body: Body) -> Endpoint:
        shape = span_shape(name, INTERNAL, {"job.system": "quartz"})
        return Endpoint(_key(service, body), service, body, shape, INTERNAL, None, INTERNAL, grpc=False)

    return wrap


def postgres(database: str, verb: str, table: str) -> Shape:
    """Spans of a statement on a table."""
    values: dict[str, Value] = {"db.system.name": "postgresql", "db.namespace": database, "db.operation.name": verb}
    return span_shape(
        f"{verb} {table}", CLIENT, {**values, "db.collection.name": table, "server.address": f"{database}-db"}
    )


def redis(verb: str, host: str) -> Shape:
    """Spans of a command to a cache."""
    return span_shape(verb, CLIENT, {"db.system.name": "redis", "db.operation.name": verb, "server.address": host})


def partner(method: str, host: str) -> Shape:
    """Spans of a call to somebody else's service."""
    return span_shape(method, CLIENT, {"http.request.method": method, "server.address": host, "server.port": 443})


INSERT_ORDER, UPDATE_ORDER = postgres("order", "INSERT", "orders"), postgres("order", "UPDATE", "orders")
SELECT_ORDER = postgres("order", "SELECT", "orders")
SELECT_ACCOUNT, UPDATE_ACCOUNT = postgres("account", "SELECT", "accounts"), postgres("account", "UPDATE", "accounts")
SELECT_CREDENTIAL = postgres("account", "SELECT", "credentials")
INSERT_JOURNAL, SELECT_JOURNAL = postgres("ledger", "INSERT", "journal"), postgres("ledger", "SELECT", "journal")
INSERT_REPORT = postgres("settlement", "INSERT", "reports")
CACHED_VELOCITY, CACHED_BALANCE = redis("HGETALL", "risk-cache"), redis("GET", "account-cache")
CARD_NETWORK, MESSAGES = partner("POST", "switch.cardnetwork.example"), partner("POST", "api.messages.example")
VERIFY_TOKEN, DEEP_MODEL = span_shape("verify token", INTERNAL, {}), span_shape("score deep model", INTERNAL, {})
HASH_PASSWORD, RECONCILE = span_shape("hash password", INTERNAL, {}), span_shape("reconcile", INTERNAL, {})


# --- account --------------------------------------------------------------------------------------------------------


@http("account", "POST", "/v1/debits")
def debit(op: Operation) -> str:
    tx = op.tx
    op.info("debit of %.2f %s requested on %s", tx.amount, tx.currency, tx.account)
    op.query(SELECT_ACCOUNT, 1.6)
    op.work(2.0)
    if 0.010 < tx.trouble < 0.022:
        op.warn("insufficient funds on %s for payment %s", tx.account, tx.payment_id)
        return "insufficient"
    amount = op.value(tx.amount)
    op.query(UPDATE_ACCOUNT, 2.4)
    op.audit("account %s debited with %.2f %s, reference %s", tx.account, amount, tx.currency, tx.payment_id)
    op.rest.append(DEBITED(amount))
    return "debited"


@http("account", "POST", "/v1/credits")
def credit(op: Operation) -> str:
    tx = op.tx
    op.info("credit of %.2f %s requested on %s", tx.amount, tx.currency, tx.payee)
    op.query(SELECT_ACCOUNT, 1.6)
    op.work(1.8)
    amount = op.value(tx.amount)
    op.query(UPDATE_ACCOUNT, 2.4)
    op.audit("account %s credited with %.2f %s, reference %s", tx.payee, amount, tx.currency, tx.payment_id)
    op.rest.append(CREDITED(amount))
    return "credited"


@http("account", "GET", "/v1/accounts/{account}")
def payee(op: Operation) -> str:
    op.work(0.8)
    op.query(SELECT_ACCOUNT, 1.6)
    op.info("account %s is open", op.tx.payee)
    return "open"


@http("account", "GET", "/v1/accounts/{account}/balance")
def balance(op: Operation) -> str:
    op.work(0.9)
    op.query(CACHED_BALANCE, 0.4)
    if op.rng.random() < 0.3:
        op.info("balance of %s is not cached", op.tx.account)
        op.query(SELECT_ACCOUNT, 1.8)
    op.info("balance of %s read", op.tx.account)
    return "read"


@http("account", "POST", "/v1/sessions")
def authenticate(op: Operation) -> str:
    op.query(SELECT_CREDENTIAL, 1.4)
    op.step(HASH_PASSWORD, 22.0)
    if op.tx.trouble < 0.04:
        op.warn("wrong password for %s", op.tx.account)
        return "wrong"
    if op.rng.random() < 0.3:
        op.call(device_check)
    op.info("session opened for %s", op.tx.account)
    return "opened"


# --- risk -----------------------------------------------------------------------------------------------------------


@rpc("risk", "RiskService", "Assess")
def assess(op: Operation) -> str:
    tx = op.tx
    op.info("assessing payment %s", tx.payment_id)
    op.query(CACHED_VELOCITY, 0.5)
    op.work(4.0)
    score = int(op.rng.betavariate(1.2, 9.0) * 1000)
    if tx.amount > 300.0:
        op.step(DEEP_MODEL, 14.0)
        op.info("deep model scored %s in band %s", tx.payment_id, "ABCDE"[score // 200])
    if tx.trouble < 0.010:
        op.warn("payment %s refused, score %d", tx.payment_id, 1000 - score)
        return "refused"
    op.info("payment %s approved, score %d", tx.payment_id, score)
    return "approved"


@rpc("risk", "RiskService", "CheckDevice")
def device_check(op: Operation) -> str:
    op.query(CACHED_VELOCITY, 0.5)
    op.work(2.5)
    op.info("device of %s is known", op.tx.account)
    return "known"


# --- clearing -------------------------------------------------------------------------------------------------------


@http("clearing", "POST", "/v1/authorisations")
def authorise(op: Operation) -> str:
    tx = op.tx
    op.info("authorising %s over %.2f %s", tx.payment_id, tx.amount, tx.currency)
    op.work(3.0)
    op.log(INFO, "switch message 0100 queued payment.id=%s", tx.payment_id, traced=False)
    op.external(CARD_NETWORK, 45.0, 0.3, 1200.0)
    if 0.022 < tx.trouble < 0.045:
        op.warn("issuer declined %s with code %02d", tx.payment_id, int(op.rng.random() * 90))
        return "declined"
    op.info("issuer approved %s with authorisation code %06d", tx.payment_id, op.rng.randrange(10**6))
    return "approved"


@http("clearing", "POST", "/v1/quotes")
def quote(op: Operation) -> str:
    op.work(1.2)
    op.info("rate for %s is %.4f", op.tx.currency, 0.8 + op.rng.random() * 0.5)
    return "quoted"


@http("clearing", "POST", "/v1/reversals")
def reverse(op: Operation) -> str:
    op.info("reversing %s", op.tx.payment_id)
    op.work(2.2)
    op.external(CARD_NETWORK, 38.0, 0.3, 1200.0)
    op.info("reversal of %s accepted", op.tx.payment_id)
    return "reversed"


@http("clearing", "POST", "/v1/positions")
def net_position(op: Operation) -> str:
    op.work(9.0)
    op.info("net position over %d items is %.2f", op.rng.randrange(20, 400), op.rng.gauss(0.0, 9000.0))
    return "netted"


# --- notification ---------------------------------------------------------------------------------------------------


@consumer("notification", "payments.posted")
def notify(op: Operation) -> str:
    tx = op.tx
    op.work(1.1)
    by_text = op.rng.random() < 0.6
    op.info("telling the owner of %s by %s", tx.account, "text message" if by_text else "mail")
    op.external(MESSAGES, 30.0 if by_text else 55.0, 0.35, 500.0)
    op.log(
        INFO, "provider took message %d", op.rng.randrange(10**9), traced=False,
        rest=attribute(LOG_ATTRIBUTE, "payment.id", tx.payment_id),
    )  # fmt: skip
    op.info("owner of %s told about %s", tx.account, tx.payment_id)
    return "told"


@consumer("notification", "settlements.closed")
def report(op: Operation) -> str:
    op.work(3.0)
    op.external(MESSAGES, 60.0, 0.35, 500.0)
    op.info("settlement report sent to %d participants", op.rng.randrange(8, 14))
    return "sent"


# --- ledger ---------------------------------------------------------------------------------------------------------


def book(op: Operation) -> None:
    """Two legs of a journal entry."""
    tx = op.tx
    op.info("posting %s", tx.payment_id)
    op.work(1.6)
    amount = op.value(tx.amount)
    op.query(INSERT_JOURNAL, 2.0)
    op.query(INSERT_JOURNAL, 2.0)
    op.log(INFO, "writer flushed entry payment.id=%s", tx.payment_id, traced=False)
    op.audit("journal entry %d booked for %s over %.2f", op.rng.randrange(10**9), tx.payment_id, amount)
    if op.endpoint is post_payment:
        op.rest.append(CREDITED(amount))


@consumer("ledger", "payments.authorised")
def post_payment(op: Operation) -> str:
    book(op)
    op.publish(notify)
    return "posted"


@rpc("ledger", "LedgerService", "Post")
def post(op: Operation) -> str:
    book(op)
    return "posted"


@rpc("ledger", "LedgerService", "PostBatch")
def post_batch(op: Operation) -> str:
    op.work(6.0)
    op.query(INSERT_JOURNAL, 12.0)
    op.info("batch of %d entries booked", op.rng.randrange(20, 400))
    return "posted"


# --- order ----------------------------------------------------------------------------------------------------------


@http("order", "POST", "/v1/orders")
def create_payment(op: Operation) -> str:
    tx = op.tx
    op.info("payment %s over %.2f %s from %s", tx.payment_id, tx.amount, tx.currency, tx.account)
    op.work(2.6)
    op.query(INSERT_ORDER, 2.2)
    if op.call(assess, 2000.0) == "refused":
        return finish(op, "refused")
    if tx.currency != "EUR":
        op.call(quote)
    if op.call(debit) == "insufficient":
        return finish(op, "refused")
    try:
        authorised = op.call(authorise, 3000.0, retries=1)
    except RequestError:
        op.warn("giving %s back after a failed authorisation", tx.payment_id)
        op.call(credit)
        raise
    if authorised == "declined":
        op.call(credit)
        return finish(op, "declined")
    finish(op, "authorised")
    op.publish(post_payment)
    return "authorised"


def finish(op: Operation, state: str) -> str:
    """Write the state of the order."""
    op.query(UPDATE_ORDER, 2.0)
    op.info("payment %s is now %s", op.tx.payment_id, state)
    return state


@http("order", "POST", "/v1/transfers")
def create_transfer(op: Operation) -> str:
    tx = op.tx
    op.info("transfer %s over %.2f %s from %s to %s", tx.payment_id, tx.amount, tx.currency, tx.account, tx.payee)
    op.work(2.4)
    op.query(INSERT_ORDER, 2.2)
    decision, _ = op.parallel(lambda: op.call(assess, 2000.0), lambda: op.call(payee))
    if decision == "refused":
        return finish(op, "refused")
    if op.call(debit) == "insufficient":
        return finish(op, "refused")
    op.call(credit)
    op.call(post)
    finish(op, "executed")
    op.publish(notify)
    return "executed"


@http("order", "POST", "/v1/refunds")
def create_refund(op: Operation) -> str:
    op.query(SELECT_ORDER, 1.7)
    op.work(1.9)
    op.info("refund of %.2f %s for %s", op.tx.amount, op.tx.currency, op.tx.payment_id)
    op.call(reverse, 3000.0, retries=1)
    op.call(credit)
    op.call(post)
    finish(op, "refunded")
    op.publish(notify)
    return "refunded"


@http("order", "GET", "/v1/orders/{payment}")
def order_status(op: Operation) -> str:
    op.work(0.7)
    op.query(SELECT_ORDER, 1.7)
    op.info("state of %s read", op.tx.payment_id)
    return "read"


# --- gateway --------------------------------------------------------------------------------------------------------


def forward(op: Operation, target: Endpoint, refusals: tuple[str, ...] = ()) -> None:
    """What every route of the gateway does: check who it is, pass it on, say how it went."""
    op.info("request from %s accepted", f"10.{op.rng.randrange(256)}.{op.rng.randrange(256)}.{op.rng.randrange(256)}")
    op.step(VERIFY_TOKEN, 0.7)
    answer = op.call(target, 10_000.0)
    if answer in refusals:
        op.status_code = 402
    op.info("answered %d after %d ms", op.status_code, (op.now_ns - op.start_ns) // 1_000_000)


def paying(op: Operation) -> None:
    """From here on the spans of the transaction say which payment they belong to."""
    tx = op.tx
    keys: dict[str, Value] = {"payment.id": tx.payment_id, "account.id": tx.account, "payment.currency": tx.currency}
    tx.keys = attributes(SPAN_ATTRIBUTE, keys) + AMOUNT(tx.amount)


@http("gateway", "POST", "/api/payments")
def card_payment(op: Operation) -> None:
    paying(op)
    forward(op, create_payment, ("refused", "declined"))


@http("gateway", "POST", "/api/transfers")
def transfer(op: Operation) -> None:
    paying(op)
    forward(op, create_transfer, ("refused",))


@http("gateway", "POST", "/api/refunds")
def refund(op: Operation) -> None:
    paying(op)
    forward(op, create_refund)


@http("gateway", "GET", "/api/payments/{payment}")
def payment_status(op: Operation) -> None:
    forward(op, order_status)


@http("gateway", "GET", "/api/accounts/{account}/balance")
def read_balance(op: Operation) -> None:
    forward(op, balance)


@http("gateway", "POST", "/api/login")
def login(op: Operation) -> None:
    forward(op, authenticate, ("wrong",))


# --- settlement -----------------------------------------------------------------------------------------------------


def settle(op: Operation, participants: int) -> None:
    """Net and book what the participants owe each other."""
    op.info("settlement run %d started", op.rng.randrange(10**6))
    op.query(SELECT_JOURNAL, 9.0)
    op.work(5.0)
    for _ in range(participants):
        op.call(net_position)
        op.call(post_batch)
    op.query(INSERT_REPORT, 3.0)
    op.info("settlement run closed after %d participants", participants)
    op.publish(report)


@job("settlement", "settlement.session")
def settle_session(op: Operation) -> None:
    settle(op, 2)


@job("settlement", "settlement.night")
def settle_night(op: Operation) -> None:
    op.step(RECONCILE, 180.0)
    settle(op, op.rng.randrange(6, 9))


ENTRIES: Final[Mapping[str, Endpoint]] = {
    "card_payment": card_payment,
    "transfer": transfer,
    "refund": refund,
    "balance": read_balance,
    "payment_status": payment_status,
    "login": login,
    "settlement_session": settle_session,
    "settlement_night": settle_night,
}

ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    found.key: found for found in list(globals().values()) if isinstance(found, Endpoint)
}
