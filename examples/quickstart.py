"""Put grouped coordinate attention into every bottleneck of a timm ResNet-50."""

import timm
import torch

import gca

model = timm.create_model("resnet50")
before = sum(parameter.numel() for parameter in model.parameters())
gca.inject(model, groups=2, reduction=2)
after = sum(parameter.numel() for parameter in model.parameters())
logits = model(torch.randn(1, 3, 224, 224))
print(f"{len(gca.injected(model))} layers, {before:,} -> {after:,} parameters, output {tuple(logits.shape)}")
