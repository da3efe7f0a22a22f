"""The cut: embedding and the first blocks on the device, the other blocks and the head on the server."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from tsflora.compression import Adapter, Draw, Merger, merge
from tsflora.compression.batch import Seen, Tokens
from tsflora.errors import ConfigError
from tsflora.seeding import torch_generator


class Front(nn.Module):
    """Embedding and blocks 1..cut, in which tokens may be merged.

    Where none are, it also yields the CLS query's attention in the last block. The block itself keeps its fused
    attention: the CLS row is computed beside it from the same queries and keys, LoRA included, at 2 B M D
    multiply-adds.
    """

    merging: Merger | None = None
    """Set it by `merge_by`."""

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.blocks = self.vit.blocks[:cut]
        self.vit.norm, self.vit.head = nn.Identity(), nn.Identity()

    def merge_by(self, merging: Merger | None) -> None:
        """Merge tokens by this rule from now on; None: not at all.

        Raises:
            ConfigError: a rule for another number of blocks, or blocks that are not timm's own.
        """
        if merging is not None:
            merging.check(len(self.vit.blocks))
            for block in self.vit.blocks:
                if type(block) is not Block or type(block.attn) is not Attention:
                    raise ConfigError(f"merging: given blocks of sort {type(block).__name__}; allowed: timm's Block")
        self.merging = merging

    def forward(self, images: Float[Tensor, "batch 3 size size"], draw: Draw | None = None) -> Seen:
        """Activations after block `cut`, of tokens that were merged on the way if the front is to merge.

        Random draws of merging come from the stream `merging` of `draw`; None: from one that is always the same.
        """
        if self.merging is None:
            return self.unmerged(images)
        generator = torch_generator("merging", device=images.device) if draw is None else draw("merging")
        return self._merged(images, self.merging, generator)

    def unmerged(self, images: Float[Tensor, "batch 3 size size"]) -> Seen:
        """All tokens after block `cut`, and each head's softmax attention of the CLS query over them."""
        with _outputs(self.vit.blocks[-1].attn.qkv) as kept:
            tokens = self.vit.blocks(self._embedded(images))
        return Seen(Tokens(tokens), self._cls_attention(kept[0]))

    def _embedded(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch tokens dim"]:
        return self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(self.vit.patch_embed(images))))

    def _merged(self, images: Float[Tensor, "batch 3 size size"], merging: Merger, generator: torch.Generator) -> Seen:
        """timm's blocks with a step of merging between attention and MLP (ToMe, arXiv 2210.09461).

        Attention of the blocks after a step weighs a key by its token's size.
        """
        tokens = Tokens(self._embedded(images))
        n_patches = tokens.values.shape[1] - 1
        for index, block in enumerate(self.vit.blocks):
            with _outputs(block.attn.qkv) as kept:
                attended = block.attn(block.norm1(tokens.values), attn_mask=_key_bias(tokens))
            values = tokens.values + block.drop_path1(block.ls1(attended))
            metric = _mean_key(block.attn, kept[0])
            tokens = merge(Tokens(values, tokens.lengths, tokens.sizes), metric, merging, index, generator)
            values = tokens.values + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens.values))))
            tokens = Tokens(values, tokens.lengths, tokens.sizes)
        tokens = tokens.like(tokens.rows())  # the MLP's bias went into padding, too
        sizes = tokens.sizes if merging.sizes else None
        return Seen(Tokens(tokens.values, tokens.lengths, sizes), n_patches=n_patches)

    @torch.no_grad()
    def _cls_attention(self, qkv: Float[Tensor, "batch tokens three_dims"]) -> Float[Tensor, "batch heads tokens"]:
        attention = self.vit.blocks[-1].attn
        batch, tokens, _ = qkv.shape
        query, key, _ = qkv.detach().float().reshape(batch, tokens, 3, attention.num_heads, -1).unbind(2)
        query, key = attention.q_norm(query[:, 0]), attention.k_norm(key)
        # Autocast would make this product bf16 again, and scores that tie choose tokens by position.
        with torch.autocast(qkv.device.type, enabled=False):
            return (torch.einsum("bhc,bthc->bht", query, key) * attention.scale).softmax(dim=-1)


@contextlib.contextmanager
def _outputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What the layer puts out inside the context: a second product would cost time, and might be another."""
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        hook.remove()


@torch.no_grad()
def _mean_key(attention: Attention, qkv: Float[Tensor, "batch tokens three_dims"]) -> Float[Tensor, "batch tokens c"]:
    """Each token's key, averaged over the heads: what tokens are compared by."""
    batch, tokens, _ = qkv.shape
    key = qkv.detach().float().reshape(batch, tokens, 3, attention.num_heads, -1)[:, :, 1]
    with torch.autocast(qkv.device.type, enabled=False):
        return attention.k_norm(key).mean(dim=2)


def _key_bias(tokens: Tokens) -> Float[Tensor, "batch 1 longest longest"] | None:
    """`Tokens.bias` as attention kernels want it: a row for each query, of the type that autocast gives queries."""
    bias, where = tokens.bias(), tokens.values.device.type
    if bias is None:
        return None
    dtype = torch.get_autocast_dtype(where) if torch.is_autocast_enabled(where) else tokens.values.dtype
    return bias.to(dtype).expand(-1, -1, tokens.values.shape[1], -1)


class Back(nn.Module):
    """Blocks cut+1..L, the final norm and the head. Takes any number of tokens, CLS first; padding is never seen."""

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.blocks = self.vit.blocks[cut:]
        self.vit.patch_embed = self.vit.cls_token = self.vit.pos_embed = None

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        values, bias = tokens.values, _key_bias(tokens)
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


def split(vit: VisionTransformer, cut: int, merging: Merger | None = None) -> tuple[Front, Back]:
    """Split after block `cut`; each part holds its own tensors and nothing of the other's blocks.

    Both are in evaluation mode, as what is frozen must not move; adapters train in it all the same. The front merges
    tokens by `merging`.

    Raises:
        ConfigError: a cut that leaves one side without a block; see `Front.merge_by`.
    """
    depth = len(vit.blocks)
    if not 1 <= cut < depth:
        raise ConfigError(f"cut: {cut} is outside the model; it has {depth} blocks, allowed: 1 to {depth - 1}")
    front = Front(vit, cut)
    front.merge_by(merging)
    return front.eval(), Back(vit, cut).eval()


def unsplit_names(adapter: Adapter) -> Adapter:
    """The same tensors under the names of the model that was split: blocks keep their numbers across the cut."""
    return {name.split("vit.", 1)[1]: tensor for name, tensor in adapter.items()}
