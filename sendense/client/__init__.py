"""A hub from a program or a command, over its API."""

from sendense.client.clients import AsyncClient as AsyncClient
from sendense.client.clients import Client as Client
from sendense.client.handles import AsyncJobHandle as AsyncJobHandle
from sendense.client.handles import JobHandle as JobHandle
