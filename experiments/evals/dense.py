"""Linear probes of dense prediction: segmentation on ADE20K, depth on NYU Depth v2, or both on the embedded world.

COMMAND: vjepa eval --config experiments/evals/dense.py:ade20k --checkpoint RUN --config.segmentation.path=ADE20K
   vjepa eval --config experiments/evals/dense.py:nyuv2 --checkpoint RUN --config.depth.path=NYU
   (ADE20K: images/ and annotations/, each with training/ and validation/; NYU: nyu_train.txt and nyu_test.txt with
   lines 'IMAGE DEPTH', depth in millimetres; :world needs no data)
HARDWARE: one GPU of 80 GB; 2 CPU cores for :world
PUBLISHED NUMBER: V-JEPA 2.1, best head on validation: mIoU of ADE20K ViT-g 47.8, ViT-G 47.9 (V-JEPA 2 ViT-g 24.4); RMSE
   of NYUv2 in metres ViT-g .350, ViT-G .307 (V-JEPA 2 ViT-g .642)
MEASURED: not on ADE20K or NYUv2. :world on a demo run (400 steps), 5 min 40 s on 2 shared cores, 3 seeds, 256 scenes,
   best head: mIoU 8.7 % (8.6 to 8.8), random init 9.5 % (9.0 to 9.9), raw pixels 9.6 %, majority class 4.2 %; RMSE of
   depth .247, random init .243, raw pixels .245, mean depth .267. So short a training for motion adds nothing at a
   single place. Features that hold the labels, averaged over each token, get 93 % and .16: the task can be solved
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
