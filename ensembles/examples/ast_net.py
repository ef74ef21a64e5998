"""The Audio Spectrogram Transformer of Hugging Face's transformers as a net of one's own.

Gong, Chung and Glass 2021. The defaults are those of MIT/ast-finetuned-audioset-10-10-0.4593.
"""
import torch
from torch import nn
from transformers.models.audio_spectrogram_transformer import ASTConfig, ASTForAudioClassification


class AST(nn.Module):
    """Logits f32[B, K] of x f32[B, 1, frames, mels]: time first, as its feature extractor gives it."""

    fixed_frames = 1024

    def __init__(self, classes: int, layers: int = 12, width: int = 768, heads: int = 12, frames: int = 1024,
                 stride: int = 10) -> None:
        super().__init__()
        config = ASTConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_length=frames,
            num_mel_bins=128,
            frequency_stride=stride,
            time_stride=stride,
            num_labels=classes,
        )
        self.net = ASTForAudioClassification(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x[:, 0]).logits
