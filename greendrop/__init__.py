"""A Kafka producer for gevent, threads and plain scripts."""

from greendrop.delivery import DeliveryHandle, DeliveryReport
from greendrop.errors import (
    BrokerError,
    ConfigurationInvalidError,
    DeliveryError,
    DeliveryTimeoutError,
    EventNotRegisteredError,
    GreendropError,
    IllegalWaitError,
    MessageInvalidError,
    MessagePurgedError,
    MessagesAbandonedError,
    MiddlewareError,
    OAuthTokenError,
    PoolClosedError,
    PoolNotConfiguredError,
    PoolTimeoutError,
    ProduceError,
    ProduceManyError,
    ProducerAlreadyConfiguredError,
    ProducerClosedError,
    ProducerNotConfiguredError,
    ProducerUsedInParentProcessError,
    QueueFullError,
    ReportLostError,
    StatisticsNotEnabledError,
    VariantInvalidError,
)
from greendrop.events import Event, Monitor, monitor
from greendrop.message import Message
from greendrop.middleware import Middleware
from greendrop.oauth import OAuthBearer, OAuthToken
from greendrop.pool import (
    PoolStats,
    ProducerPool,
    default_pool,
    set_default_pool,
)
from greendrop.producer import Producer
from greendrop.scope import DeliveryScope

__version__ = "0.1.0"

__all__ = [
    "BrokerError",
    "ConfigurationInvalidError",
    "DeliveryError",
    "DeliveryHandle",
    "DeliveryReport",
    "DeliveryScope",
    "DeliveryTimeoutError",
    "Event",
    "EventNotRegisteredError",
    "GreendropError",
    "IllegalWaitError",
    "Message",
    "MessageInvalidError",
    "MessagePurgedError",
    "MessagesAbandonedError",
    "Middleware",
    "MiddlewareError",
    "Monitor",
    "OAuthBearer",
    "OAuthToken",
    "OAuthTokenError",
    "PoolClosedError",
    "PoolNotConfiguredError",
    "PoolStats",
    "PoolTimeoutError",
    "ProduceError",
    "ProduceManyError",
    "Producer",
    "ProducerAlreadyConfiguredError",
    "ProducerClosedError",
    "ProducerNotConfiguredError",
    "ProducerPool",
    "ProducerUsedInParentProcessError",
    "QueueFullError",
    "ReportLostError",
    "StatisticsNotEnabledError",
    "VariantInvalidError",
    "default_pool",
    "monitor",
    "set_default_pool",
]
