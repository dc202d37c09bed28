"""The ten papers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """One of the ten papers.

    Attributes:
        package: import name and folder. command: of its command line.
        name: the method's short name. title, authors, venue, arxiv: of the paper.
        repository: the authors' code.
        method: what it does, in three sentences.
        claim: the paper's headline, from its abstract, its tables or its authors' page.
    """

    package: str
    command: str
    name: str
    title: str
    authors: str
    venue: str
    arxiv: str
    repository: str
    method: tuple[str, str, str]
    claim: str


PAPERS: tuple[Paper, ...] = (
    Paper(
        package="flashsloth",
        command="flashsloth",
        name="FlashSloth",
        title="FlashSloth: Lightning Multimodal Large Language Models via Embedded Visual Compression",
        authors="Bo Tong, Bokai Lai, Yiyi Zhou, Gen Luo, Yunhang Shen, Ke Li, Xiaoshuai Sun, Rongrong Ji",
        venue="CVPR 2025",
        arxiv="2412.04317",
        repository="https://github.com/codefanw/FlashSloth",
        method=(
            "Spatial attention pooling turns every 3x3 block of image features into one visual token.",
            "Nine query tokens look at the question, then at all unpooled features, inside the model.",
            "A 3B model so reads 81 visual tokens per image instead of 729, or 405 in high definition.",
        ),
        claim="9 times fewer visual tokens at the quality of the uncompressed model",
    ),
    Paper(
        package="dyvte",
        command="dyvte",
        name="DyVTE",
        title=("Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and Empirical Findings"),
        authors="Qiong Wu, Wenhao Lin, Yiyi Zhou, Weihao Ye, Zhanpeng Zeng, Xiaoshuai Sun, Rongrong Ji",
        venue="NeurIPS 2025",
        arxiv="2411.19628",
        repository="https://github.com/DoubtedSteam/DyVTE",
        method=(
            "From some layer on, which depends on the sample, visual tokens no longer change the answer.",
            "After every decoder layer a small gate reads two pooled text states and says keep or exit.",
            "At the first exit all visual tokens leave; only the gates are trained.",
        ),
        claim="45.7 % fewer TFLOPs at equal SEED-Bench score on LLaVA-1.5-7B",
    ),
    Paper(
        package="gamma_mod",
        command="gamma-mod",
        name="γ-MoD",
        title="γ-MoD: Exploring Mixture-of-Depth Adaptation for Multimodal Large Language Models",
        authors=("Yaxin Luo, Gen Luo, Jiayi Ji, Yiyi Zhou, Xiaoshuai Sun, Zhiqiang Shen, Rongrong Ji"),
        venue="ICLR 2025",
        arxiv="2410.13859",
        repository="https://github.com/Yaxin9Luo/Gamma-MOD",
        method=(
            "The rank of a layer's attention maps tells which dense layers are redundant.",
            "In instruction tuning those become mixture-of-depth layers: one shared router lets tokens skip.",
            "In training no token of the question may skip; only image tokens compete for the budget.",
        ),
        claim="LLaVA-HR-7B at 9.3 instead of 19.2 TFLOPs, 0.9 points lower on average",
    ),
    Paper(
        package="fitprune",
        command="fitprune",
        name="FitPrune",
        title=("Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models"),
        authors="Weihao Ye, Qiong Wu, Wenhao Lin, Yiyi Zhou",
        venue="AAAI 2025",
        arxiv="2409.10197",
        repository="https://github.com/ywh187/FitPrune",
        method=(
            "A few samples show how much attention visual tokens receive from image and text, by layer.",
            "Bisection finds the smallest relative loss of both masses that meets a compute budget.",
            "The result is a recipe, a number of visual tokens to remove in each layer; nothing is trained.",
        ),
        claim="54.9 % fewer FLOPs on LLaVA-NeXT for 0.5 % of accuracy, from a recipe made in about 5 minutes",
    ),
    Paper(
        package="dtnet",
        command="dtnet",
        name="DTNet",
        title="Image Captioning via Dynamic Path Customization",
        authors=("Yiwei Ma, Jiayi Ji, Xiaoshuai Sun, Yiyi Zhou, Xiaopeng Hong, Yongjian Wu, Rongrong Ji"),
        venue="IEEE TNNLS 2025",
        arxiv="2406.00334",
        repository="https://github.com/xmu-xiaoma666/DTNet",
        method=(
            "Each encoder layer of a captioner holds three spatial and two channel cells.",
            "A router looks at the input over positions and over channels, and weighs the cells by image.",
            "Training is cross entropy, then self-critical learning with the CIDEr-D reward.",
        ),
        claim="CIDEr 134.9 on the Karpathy test split of COCO",
    ),
    Paper(
        package="dit_sam",
        command="dit-sam",
        name="DIT",
        title="Deep Instruction Tuning for Segment Anything Model",
        authors=("Xiaorui Huang, Gen Luo, Chaoyang Zhu, Bo Tong, Yiyi Zhou, Xiaoshuai Sun, Rongrong Ji"),
        venue="ACM Multimedia 2024",
        arxiv="2404.00650",
        repository="https://github.com/wysnzzzz/DIT",
        method=(
            "SAM sees text only in its light mask decoder, too shallow for referring expressions.",
            "DIT puts the text tokens before the image tokens inside the image encoder.",
            "They travel through the blocks (E-DIT), or each block gets its own projection of them (L-DIT).",
        ),
        claim="RefCOCO val +1.94 over the best method trained from scratch",
    ),
    Paper(
        package="eas",
        command="eas",
        name="EAS",
        title=(
            "Not All Attention is Needed: Parameter and Computation Efficient Tuning for Multi-modal Large "
            "Language Models via Effective Attention Skipping"
        ),
        authors="Qiong Wu, Weihao Ye, Yiyi Zhou, Xiaoshuai Sun, Rongrong Ji",
        venue="arXiv 2024",
        arxiv="2403.15226",
        repository="https://github.com/DoubtedSteam/EAS",
        method=(
            "While a frozen model is adapted, a bandit search ranks its multi-head attentions.",
            "The most dispensable ones are removed; an adapter with one global token takes each one's place.",
            "The adapter is linear and folds into the next layer's weights.",
        ),
        claim="LaVIN-EAS at 89.98 % on ScienceQA, 2.2 times faster than LaVIN",
    ),
    Paper(
        package="e3_facenet",
        command="e3-facenet",
        name="E3-FaceNet",
        title=(
            "Fast Text-to-3D-Aware Face Generation and Manipulation via Direct Cross-modal Mapping and "
            "Geometric Regularization"
        ),
        authors=(
            "Jinlu Zhang, Yiyi Zhou, Qiancheng Zheng, Xiaoxiong Du, Gen Luo, Jun Peng, Xiaoshuai Sun, Rongrong Ji"
        ),
        venue="ICML 2024",
        arxiv="2403.06702",
        repository="https://github.com/Aria-Zhangjl/E3-FaceNet",
        method=(
            "A caption and noise give one style code, which drives a small NeRF and an upsampler.",
            "Before each upsampling block the features look at the words and correct the style code.",
            "A regularisation smooths the points that the expected ray depth gives.",
        ),
        claim="Five views of a face 471.75 times faster than Latent3D",
    ),
    Paper(
        package="llava_hr",
        command="llava-hr",
        name="LLaVA-HR",
        title="Feast Your Eyes: Mixture-of-Resolution Adaptation for Multimodal Large Language Models",
        authors="Gen Luo, Yiyi Zhou, Yuxin Zhang, Xiawu Zheng, Xiaoshuai Sun, Rongrong Ji",
        venue="ICLR 2025",
        arxiv="2403.03003",
        repository="https://github.com/luogen1996/LLaVA-HR",
        method=(
            "One image is read at two resolutions, by a convolutional encoder and by a vision transformer.",
            "Three gated adapters write the fine features into the transformer between its quarters.",
            "An image of 1024 pixels so costs 1024 visual tokens, and a language model sees fine detail.",
        ),
        claim="About 3 times the inference speed of LLaVA-1.5 at the same resolution",
    ),
    Paper(
        package="inst_diff_edit",
        command="inst-diff-edit",
        name="InstDiffEdit",
        title="Towards Efficient Diffusion-Based Image Editing with Instant Attention Masks",
        authors=("Siyu Zou, Jiji Tang, Yiyi Zhou, Jing He, Chaoyi Zhao, Rongsheng Zhang, Zhipeng Hu, Xiaoshuai Sun"),
        venue="AAAI 2024",
        arxiv="2401.07709",
        repository="https://github.com/xiaotianqing/InstDiffEdit",
        method=(
            "An image is edited from a text alone: no mask, no source caption, no training, no inversion.",
            "In every denoising step the cross-attention maps of the words become a mask of what to change.",
            "Outside the mask the noised original is put back; the last mask drives an inpainting model.",
        ),
        claim="5 to 6 times faster than DiffEdit, with better masks",
    ),
)
