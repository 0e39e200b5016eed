"""Images in class folders, ImageNet, and COCO and JourneyDB with captions. Begin with `image_folder`."""
