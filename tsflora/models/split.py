"""The cut: embedding and the first blocks on the device, the other blocks and the head on the server."""

import copy

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tsflora.compression import Adapter
from tsflora.compression.batch import Seen, Tokens
from tsflora.errors import ConfigError


class Front(nn.Module):
    """Embedding and blocks 1..cut. Also yields the CLS query's attention in the last of them.

    The block itself keeps its fused attention: the CLS row is computed beside it from the same queries and keys,
    LoRA included, at 2 B M D multiply-adds.
    """

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.blocks = self.vit.blocks[:cut]
        self.vit.norm, self.vit.head = nn.Identity(), nn.Identity()

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Seen:
        """Activations after block `cut`, and each head's softmax attention of the CLS query over all tokens."""
        kept: list[Tensor] = []
        # A hook instead of a second qkv product: it sees the output of the layer that the block really used.
        hook = self.vit.blocks[-1].attn.qkv.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            tokens = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(self.vit.patch_embed(images))))
            tokens = self.vit.blocks(tokens)
        finally:
            hook.remove()
        return Seen(Tokens(tokens), self._cls_attention(kept[0]))

    @torch.no_grad()
    def _cls_attention(self, qkv: Float[Tensor, "batch tokens three_dims"]) -> Float[Tensor, "batch heads tokens"]:
        attention = self.vit.blocks[-1].attn
        batch, tokens, _ = qkv.shape
        query, key, _ = qkv.detach().float().reshape(batch, tokens, 3, attention.num_heads, -1).unbind(2)
        query, key = attention.q_norm(query[:, 0]), attention.k_norm(key)
        # Autocast would make this product bf16 again, and scores that tie choose tokens by position.
        with torch.autocast(qkv.device.type, enabled=False):
            return (torch.einsum("bhc,bthc->bht", query, key) * attention.scale).softmax(dim=-1)


class Back(nn.Module):
    """Blocks cut+1..L, the final norm and the head. Takes any number of tokens, CLS first; padding is never seen."""

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.blocks = self.vit.blocks[cut:]
        self.vit.patch_embed = self.vit.cls_token = self.vit.pos_embed = None

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        values, bias = tokens.values, tokens.bias()
        if bias is not None:
            # The kernels want one row of the mask for each query, and the type that autocast gives queries and keys.
            where = bias.device.type
            dtype = torch.get_autocast_dtype(where) if torch.is_autocast_enabled(where) else values.dtype
            bias = bias.to(dtype).expand(-1, -1, values.shape[1], -1)
        for block in self.vit.blocks:
            values = block(values, attn_mask=bias)
        return self.vit.forward_head(self.vit.norm(values))


class WholeModel(nn.Module):
    """Both parts on one machine, as local and federated fine-tuning run them."""

    def __init__(self, front: Front, back: Back) -> None:
        super().__init__()
        self.front = front
        # By name it comes after the front, as it does in the model: adapters travel in the order of names.
        self.rest = back

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        return self.rest(self.front(images).tokens)


def split(vit: VisionTransformer, cut: int) -> tuple[Front, Back]:
    """Split after block `cut`; each part holds its own tensors and nothing of the other's blocks.

    Both are in evaluation mode, as what is frozen must not move; adapters train in it all the same.

    Raises:
        ConfigError: a cut that leaves one side without a block.
    """
    depth = len(vit.blocks)
    if not 1 <= cut < depth:
        raise ConfigError(f"cut: {cut} is outside the model; it has {depth} blocks, allowed: 1 to {depth - 1}")
    return Front(vit, cut).eval(), Back(vit, cut).eval()


def unsplit_names(adapter: Adapter) -> Adapter:
    """The same tensors under the names of the model that was split: blocks keep their numbers across the cut."""
    return {name.split("vit.", 1)[1]: tensor for name, tensor in adapter.items()}
