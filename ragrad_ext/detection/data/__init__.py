"""Paired visible/infrared images: folders, generated scenes, augmentation, batches."""
