"""What a new user gets on photographs and on Fashion-MNIST, with few labels and no override."""
