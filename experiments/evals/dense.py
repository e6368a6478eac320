"""Linear probes of dense prediction: segmentation on ADE20K, depth on NYU Depth v2, or both on the embedded world.

COMMAND: vjepa eval --config experiments/evals/dense.py:ade20k --checkpoint RUN --config.segmentation.path=ADE20K
   vjepa eval --config experiments/evals/dense.py:nyuv2 --checkpoint RUN --config.depth.path=NYU
   (ADE20K: images/ and annotations/, each with training/ and validation/; NYU: nyu_train.txt and nyu_test.txt with
   lines 'IMAGE DEPTH', depth in millimetres; :world needs no data)
HARDWARE: one GPU of 80 GB; 2 CPU cores for :world
PUBLISHED NUMBER: V-JEPA 2.1, best head on validation: mIoU of ADE20K ViT-g 47.8, ViT-G 47.9 (V-JEPA 2 ViT-g 24.4); RMSE
   of NYUv2 in metres ViT-g .350, ViT-G .307 (V-JEPA 2 ViT-g .642)
MEASURED: not on ADE20K or NYUv2. :world, 256 scenes, best head, 3 seeds of heads (one training run each):
                                       mIoU %               RMSE of depth
   demo (400 steps of 64)               8.7 (8.6 to 8.8)    .247 (.246 to .248)
   demo with a context loss (below)    11.0 (10.6 to 11.4)  .240 (.239 to .241)
   random init                          9.5 (9.0 to 9.9)    .243 (.243 to .244)
   raw pixels                           9.6 (9.2 to 10.0)   .245 (.243 to .247)
   majority class, mean depth           4.2                 .267
   in 3 min 20 s on 2 cores (5 min 40 s where much else ran). Intervals are over seeds; over scenes one of mIoU is .8
   wide to either side, one of RMSE .009. Single places learn from a loss of what is seen, as V-JEPA 2.1's paper has it
   (--config.batch_size=32 --config.model.predictor.predict_context=True
   --config.loss="{'context_weight': 0.5, 'context_warmup': (50, 150)}"); without it training ranks below random init.
   Of depth all tell little. Features that hold the labels get 93 and .16 (tests/evals/test_dense.py, on fewer scenes).
"""

from ml_collections import ConfigDict

VARIANTS = ("ade20k", "nyuv2", "world")


def get_config(arg: str = "ade20k") -> ConfigDict:
    if arg == "world":
        # 64 pixels, so that an object covers several tokens of 8 pixels; what is background counts nowhere
        shared = {"data": "world", "world_size": 64, "norm": "batch", "steps": 300, "warmup_steps": 20, "seeds": 3}
        shared |= {"lrs": (1e-1, 3e-2, 1e-2), "weight_decays": (1e-3,)}
        depth = shared | {"bins": 32, "upsample": 2}
        return ConfigDict({"segmentation": ConfigDict(shared), "depth": ConfigDict(depth)})
    group = ConfigDict({"heads_at_once": 1, "micro_batch": 2})
    return ConfigDict({"segmentation" if arg == "ade20k" else "depth": group})
