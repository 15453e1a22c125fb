"""All that reaches behind BasicSR's registries.

From the hook (`hook`) over work-arounds (`patches`) and registration (`registration`) to a run
(`pipeline`): its options (`run_options`), what they name (`named`, `described`), its processes
(`processes`) and the state that it goes on from (`resume`).

What happens between an option file and the first batch of calibration::

    commands/train.py              adabm-basicsr train -opt FILE
    bridge/pipeline.py             run_pipeline
      bridge/run_options.py          parse_options
        options/yaml_files.py          load_yaml: plain values, nothing is run
        options/reading.py             check_options: every key against the table, defaults
        bridge/processes.py            join_processes
        bridge/named.py                images, architecture, checkpoint and metrics that are named
      runs/lock.py                   take_folder: one run at a time
      basicsr.train                  train_pipeline, with what bridge/patches.py replaces in it
        data/calibration_dataset.py    CalibrationDataset reads the images
        archs/adabm_arch.py            AdaBMNetwork builds the network, and replaces its layers
        models/adabm_model.py          AdaBMModel loads the weights, then init_training_settings
          quantization/calibration/calibrate.py   calibrate: `observe` sees the first batch
"""
