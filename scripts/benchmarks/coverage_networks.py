"""The networks of `benchmark coverage`: all of torchvision's classifiers, a small one of each timm family.

Kinds: "cnn"; "hybrid" where attention or recurrence stands beside convolutions; "transformer" where only the
first layer is a convolution, or none.
"""

from __future__ import annotations

from collections.abc import Iterator

from prunegym.pruning.networks.registry import NETWORKS
from prunegym.pruning.optional_packages import imported

TIMM = {
    "cnn": """
        convformer_s18 convmixer_768_32 convnext_atto convnextv2_atto cs3darknet_s cspresnet50 cspnext_tiny
        densenet121 densenetblur121d dla46_c dm_nfnet_f0 dpn48b eca_nfnet_l0 ecaresnet26t efficientnet_lite0
        ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnext26ts
        gernet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_b hgnet_tiny hgnetv2_b0
        hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_050
        lcnetv2_small legacy_senet154 legacy_seresnet18 legacy_xception mambaout_femto mixnet_s
        mnasnet_small mobilenetv1_100 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small
        mobileone_s1 nasnetalarge nf_regnet_b0 nf_resnet50 pnasnet5large poolformer_s12 poolformerv2_s12
        rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m1
        res2net50_14w_8s resnest14d resnet10t resnetblur50 resnetrs50 resnetv2_18 resnetv2_50x1_bit
        resnext26ts rexnet_100 selecsls42 semnasnet_075 seresnext26d_32x4d skresnet18 spnasnet_100
        starnet_s050 tf_efficientnetv2_b0 tf_mobilenetv3_small_minimal_100 tinynet_e tresnet_m vgg11_bn
        xception41
    """,
    "hybrid": """
        caformer_s18 coat_tiny coatnet_pico_rw_224 convit_tiny cpubone_nano csatv2 davit_tiny
        eca_botnext26ts_256 edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1
        efficientvit_b0 efficientvit_m0 halonet_h1 iformer_t lambda_resnet26t levit_conv_128s lowformer_b0
        maxvit_pico_rw_256 mobilenetv4_hybrid_medium mobilevit_xxs mobilevitv2_050 nextvit_small pvt_v2_b0
        sequencer2d_s shvit_s1 swiftformer_xs tiny_vit_5m_224 visformer_tiny vit_tiny_r_s16_p8_224
        vitamin_small_224
    """,
    "transformer": """
        cait_xxs24_224 crossvit_tiny_240 deit_tiny_patch16_224 eva02_tiny_patch14_224 gcvit_xxtiny
        gmlp_ti16_224 hiera_tiny_224 mixer_s32_224 mvitv2_tiny nest_tiny pit_ti_224 resmlp_12_224
        swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 tnt_s_patch16_224 twins_svt_small
        vit_tiny_patch16_224 volo_d1_224 xcit_nano_12_p16_224
    """,
}
TORCHVISION_KINDS = {"vit": "transformer", "swin": "transformer", "maxvit": "hybrid"}  # all others are CNNs


def networks() -> Iterator[tuple[str, str]]:
    """Yield (name as `resolve_network` takes it, kind) of every network.

    Raises:
        PruningError: torchvision is missing.
    """
    for name in NETWORKS:
        yield name, "cnn"
    models = imported("torchvision.models", extra="zoo", purpose="networks by a zoo's name")
    for name in models.list_models(module=models):
        yield f"torchvision/{name}", TORCHVISION_KINDS.get(name.partition("_")[0], "cnn")
    for kind, names in TIMM.items():
        for name in names.split():
            yield f"timm/{name}", kind
