"""The fleet of devices in this process: the one place that knows that devices share one.

Modules are lent: a population of any size costs as many copies as there are devices at work at once.
"""

from collections.abc import Mapping
from concurrent.futures import Future

from torch import Tensor, nn

from tsflora.federation.device import Device
from tsflora.federation.link import Link, Message
from tsflora.federation.sides import DeviceSide
from tsflora.federation.state import nest, under
from tsflora.models import own_copy, read_adapter, set_adapter


class Loan:
    """Copies of one module, each with the adapter of the first round when it is lent."""

    def __init__(self, template: nn.Module) -> None:
        self.template = template
        self.initial = read_adapter(template)
        self._free: list[nn.Module] = []

    def borrow(self) -> nn.Module:
        """A copy for one device."""
        module = self._free.pop() if self._free else own_copy(self.template)
        set_adapter(module, self.initial)
        return module

    def give_back(self, module: nn.Module) -> None:
        """It may be lent again."""
        self._free.append(module)


class InProcessFleet:
    """Devices that answer at once."""

    side_by_side = False

    def __init__(self, side: DeviceSide) -> None:
        self.side = side
        self.loan = Loan(side.module)
        self._devices: dict[int, Device] = {}
        self._links: dict[int, Link] = {}

    def link(self, device: int) -> Link:
        """See `Fleet`."""
        if device not in self._links:
            self._links[device] = Link(lambda message: _answered(self.device(device), message))
        return self._links[device]

    def device(self, number: int) -> Device:
        """The device itself, for those who look on."""
        if number not in self._devices:
            self._devices[number] = Device(number, self.side, self.loan)
        return self._devices[number]

    def state(self) -> dict[str, Tensor]:
        """See `Fleet`."""
        parts = [nest(str(number), device.state()) for number, device in sorted(self._devices.items())]
        return {name: tensor for part in parts for name, tensor in part.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Fleet`."""
        for number in sorted({int(name.split(".", 1)[0]) for name in state}):
            self.device(number).restore(under(str(number), state))


def _answered(device: Device, message: Message) -> Future[Message]:
    answer: Future[Message] = Future()
    try:
        answer.set_result(device.answer(message))
    except Exception as error:  # raised where the answer is asked for, as from any other place
        answer.set_exception(error)
    return answer
