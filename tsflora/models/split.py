"""The cut: embedding and the first blocks on the device, the other blocks and the head on the server."""

import copy
from typing import Literal

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tsflora.errors import ConfigError

Placement = Literal["local", "federated", "split", "central"]
"""Who runs what: `local` the device runs the whole model and sends nothing; `federated` the same, and adapters travel;
`split` the device runs the blocks before the cut; `central` the device sends images and the server trains."""


class DevicePart(nn.Module):
    """Embedding and blocks 1..cut. Also yields the CLS query's attention in the last of them.

    The block itself keeps its fused attention: the CLS row is computed beside it from the same queries and keys,
    LoRA included, at 2 B M D multiply-adds.
    """

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.blocks = self.vit.blocks[:cut]
        self.vit.norm, self.vit.head = nn.Identity(), nn.Identity()

    def forward(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch heads tokens"]]:
        """Activations after block `cut`, and each head's softmax attention of the CLS query over all tokens."""
        kept: list[Tensor] = []
        # A hook instead of a second qkv product: it sees the output of the layer that the block really used.
        hook = self.vit.blocks[-1].attn.qkv.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            tokens = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(self.vit.patch_embed(images))))
            tokens = self.vit.blocks(tokens)
        finally:
            hook.remove()
        return tokens, self._cls_attention(kept[0])

    @torch.no_grad()
    def _cls_attention(self, qkv: Float[Tensor, "batch tokens three_dims"]) -> Float[Tensor, "batch heads tokens"]:
        attention = self.vit.blocks[-1].attn
        batch, tokens, _ = qkv.shape
        query, key, _ = qkv.detach().float().reshape(batch, tokens, 3, attention.num_heads, -1).unbind(2)
        query, key = attention.q_norm(query[:, 0]), attention.k_norm(key)
        # Autocast would make this product bf16 again, and scores that tie choose tokens by position.
        with torch.autocast(qkv.device.type, enabled=False):
            return (torch.einsum("bhc,bthc->bht", query, key) * attention.scale).softmax(dim=-1)


class ServerPart(nn.Module):
    """Blocks cut+1..L, the final norm and the head. Takes any number of tokens, CLS first."""

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.blocks = self.vit.blocks[cut:]
        self.vit.patch_embed = self.vit.cls_token = self.vit.pos_embed = None

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        return self.vit.forward_head(self.vit.norm(self.vit.blocks(tokens)))


class WholeModel(nn.Module):
    """Both parts on one machine, as local and federated fine-tuning run them."""

    def __init__(self, device: DevicePart, server: ServerPart) -> None:
        super().__init__()
        self.device = device
        self.server = server

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        tokens, _ = self.device(images)
        return self.server(tokens)


def split(vit: VisionTransformer, cut: int) -> tuple[DevicePart, ServerPart]:
    """Split after block `cut`; each part holds its own tensors and nothing of the other's blocks.

    Both are in evaluation mode, as what is frozen must not move; adapters train in it all the same.

    Raises:
        ConfigError: a cut that leaves one side without a block.
    """
    depth = len(vit.blocks)
    if not 1 <= cut < depth:
        raise ConfigError(f"cut: {cut} is outside the model; it has {depth} blocks, allowed: 1 to {depth - 1}")
    return DevicePart(vit, cut).eval(), ServerPart(vit, cut).eval()
